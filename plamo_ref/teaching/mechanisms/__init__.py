"""The function of each lesson that its reader writes, lent to those who are behind: one file a lesson."""
