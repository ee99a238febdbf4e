"""Configurations, and what runs them: experiments, sweeps, comparisons, reproductions."""
