"""From a conversation to a prompt: chat templates."""
