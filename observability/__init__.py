"""Grafana dashboards and Prometheus alerts, built from code into the chart: `python -m observability`.

Nothing of a service imports this, and no image has it.
"""
