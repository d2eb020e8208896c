"""The page: a collection looked through, searched, cleaned and labelled in a browser, over a typed API.

guard.py     who may ask: hosts, origins, a token, and the headers of every answer
wire.py      connections: who holds one and asks nothing gives way
intake.py    bodies within limits, and fair turns
handed.py    what the page is handed: pictures, an index, an embed(), labels
app.py       the API; models.py, what it takes and gives; desk.py, the state behind it
upload.py    a stranger's picture decoded in a process of its own, with limits
page/        HTML, CSS and ES modules, served as they are: nothing is built, nothing comes from elsewhere
"""
