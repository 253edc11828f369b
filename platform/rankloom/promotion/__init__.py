"""Promotion: an adapter becomes a model that is checked, measured, exported and recorded."""
