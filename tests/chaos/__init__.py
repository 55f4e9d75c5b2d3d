"""Tests that kill, freeze and cut."""
