"""`python -m workers.smtp`: the room's wiring."""

from shared.delivery.room import run
from workers.smtp.transport import open_transport

if __name__ == "__main__":
    run("smtp", open_transport)
