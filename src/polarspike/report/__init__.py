"""What one looks at: tables and plots of finished runs.

``record`` reads a run from its directory, ``numbers`` are computed from it, ``run_figures`` and ``plotting`` draw them, and
``run_page``, ``runs_page`` and ``rivals_page`` put them on ``pages`` of Markdown or HTML. ``rivals`` tabulates a comparison,
and ``claims`` says of each claim whether its rows show it.
"""
