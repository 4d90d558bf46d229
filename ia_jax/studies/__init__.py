"""Studies: one recipe run in several ways (arms) on the same organisms, and one figure of all of them."""
