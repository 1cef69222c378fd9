"""The draft model, whose batches `schedule` composes. Import its modules directly.

drafter        the model: a batch in, proposals out
thread         runs it beside everything else the head does
supervisor     asks it for predictions, and goes on without it while it fails or is slow
"""
