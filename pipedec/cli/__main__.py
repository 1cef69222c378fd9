"""`python -m pipedec.cli`."""

from pipedec.cli import app

app(prog_name="pipedec")
