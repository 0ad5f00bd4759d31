"""Sweeps: a search space, trials that each train and judge one policy, and the table they make."""
