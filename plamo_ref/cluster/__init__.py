"""Data parallelism: replicas of the engine on Ray, behind one server or one `LLM`."""
