"""The parts of scripts/sweep.py: which runs a sweep has, and what came out of them."""
