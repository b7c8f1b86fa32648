"""Records of runs against papers' tables: compared, drawn, run, priced."""
