"""Tools for a user's data: what a run would read, and candidate twins for harmful prompts."""
