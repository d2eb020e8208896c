"""The page: a collection looked through, searched, cleaned and labelled in a browser, over a typed API.

serve.py     the command: an address, the server on it, and the collection opened meanwhile
security.py  who may ask: hosts, origins, a token, and the headers of every answer
limits.py    connections and bodies within limits, and fair turns
opening.py   a collection opened in the background; opened.py, what it is then; facts.py, what that says of itself
sets.py      which pictures a view shows, in which order
app.py       the API; models.py, what it takes and gives; session.py, the state behind it
upload.py    a stranger's picture decoded in a process of its own, with limits
page/        HTML, CSS and ES modules, served as they are: nothing is built, nothing comes from elsewhere
"""
