"""Judging policies in simulation: episodes, parallel actors, records, intervals, videos."""
