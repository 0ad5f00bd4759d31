"""Runs policies in simulation: episodes, parallel rollout actors, records and videos."""
