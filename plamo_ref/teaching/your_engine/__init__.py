"""Lesson 08b: an engine whose verbs the reader writes, what grows of it, and how it is tried."""
