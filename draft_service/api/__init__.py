"""The OpenAI-compatible endpoint: HTTP and text on one side, `draft_service.generation.Engine` on the other.

    app            routes and what is behind them     middleware   request ids, keys, body limit
    openai_types   request bodies                     errors       every failure in OpenAI's shape
    admission      body -> sequences to generate      replies      sequences -> response bodies
    transcript     tokens -> text of one sequence     streaming    server-sent events, clients that go away
    run            all sequences of one request       server       uvicorn inside a running event loop
    live           the page that shows the pipeline   connections  what a client's connection may cost
    responses      another route to what chats do     chunks       the streams of chats and completions

Nothing here knows of trees, stages or sockets of the pipeline.
"""

from draft_service.api.app import create_app
from draft_service.api.server import serve

__all__ = ["create_app", "serve"]
