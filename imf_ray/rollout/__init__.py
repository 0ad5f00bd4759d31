"""Rollouts of policies in simulation: episodes, parallel actors, records and videos."""
