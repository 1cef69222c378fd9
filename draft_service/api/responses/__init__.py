"""OpenAI's Responses, `POST /v1/responses`, over what serves chats. Nothing is stored.

items          what a conversation is made of     conversation  body -> body of a chat
request        request bodies                     output        deltas -> items, and the events that tell of them
reply_types    replies and events, for the        reply         items -> replies and streams
               document
"""
