"""Protect on the client, recognise on the server: gallery, search, HTTP server and client."""
