"""The live page: what the head leaves for whoever watches, and the picture that is made of it.

    head's loop --Tap--> Broadcast (asyncio, ten frames a second) --Picture.frame()--> every watcher

While nobody watches the loop pays one look at a boolean; while somebody does it appends references, and everything
else happens in the endpoint's thread. What is dropped for a slow watcher is lost to that watcher alone.
"""
