"""What the reader of each lesson writes, lent to those who are behind: one file a lesson."""
