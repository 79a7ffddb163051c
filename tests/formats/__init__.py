"""The formats alone: pure functions, golden bytes."""
