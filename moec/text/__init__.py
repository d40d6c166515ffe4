"""Texts: tokens to judge or calibrate an engine on, and an engine that writes."""
