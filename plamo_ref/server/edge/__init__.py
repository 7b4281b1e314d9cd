"""Before an answer: who may ask, how much, and in which form."""
