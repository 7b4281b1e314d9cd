"""One operation a file: its formula with a glossary, the plain torch twin, the fast kernel."""
