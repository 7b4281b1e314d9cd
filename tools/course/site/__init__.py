"""The lessons and the project's pages as a static site that asks nobody for anything."""
