"""Making and checking the course: execution, rules, editions, slides."""
