"""Configurations, and what runs them: experiments, sweeps, comparisons and reproductions."""
