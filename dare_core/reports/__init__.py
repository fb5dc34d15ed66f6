"""Run reports: what a run did, gathered from its folder and the warehouse, and drawn as one HTML file."""
