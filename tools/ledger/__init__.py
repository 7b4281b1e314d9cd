"""docs/ledger.md, its pictures and README.md's table, made from the recorded results."""
