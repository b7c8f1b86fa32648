"""Channel axes of any network: found by watching a pass, kept as labels, cut by name."""
