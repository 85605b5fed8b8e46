"""Schedules, guidance and long-video plans: pure functions of tensors."""
