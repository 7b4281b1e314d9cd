"""The law, its audits, and the faults planted to prove that they bite."""
