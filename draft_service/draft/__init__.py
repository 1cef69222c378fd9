"""The draft model: what it is given, how it runs, and how the head does without it. Import its modules directly.

    batches        its own stream of batches: what it is told of every sequence, and what it answered
    guidance       what a request's grammar allows it to propose
    drafter        the model: a batch in, proposals out
    thread         runs it beside everything else the head does
    supervisor     asks it for predictions, and goes on without it while it fails or is slow

The scheduler composes its batches with `batches`, and knows nothing of the others.
"""
