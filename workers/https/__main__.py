"""`python -m workers.https`: the room's wiring."""

from shared.delivery.room import run
from workers.https.transport import open_transport

if __name__ == "__main__":
    run("https", open_transport)
