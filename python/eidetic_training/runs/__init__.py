"""Run folders, and what is made from them: tables, reports, figures, exports."""
