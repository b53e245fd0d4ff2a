"""What the properties are tried with: valid values of every kind, and text that is likely to do harm."""

import string
from datetime import UTC, datetime

from hypothesis import strategies as st

from shared.mail.envelope import Delivery, Envelope
from shared.mail.reply import Reply
from shared.mail.route import Route, Target

_LABEL = string.ascii_lowercase + string.digits
_ATEXT = string.ascii_letters + string.digits + "!#$%&'*+-/=?^_`{|}~."

# Pieces that mean something to SMTP, HTTP, MIME, URLs or IDNA, so that random text comes near to what a stranger tries.
_PIECES = st.sampled_from(
    [
        *'@.:[]<>",;\\/%#?&=+- _*\r\n\t\x00\x7f\x85\xad',
        *"\u2028\u200d\u3002\uff0e\uff20\ufeff\U0001f4e7\u0130\u00df\u0663",
        "a.com",
        "xn--",
        "xn--bcher-kva",
        "b\u00fccher",
        "IPv6:",
        "::1",
        "::ffff:1.2.3.4",
        "192.0.2.1",
        "127.1",
        "0x7f",
        "https://",
        "http://",
        "25",
        "99999",
        "\r\nRCPT TO:<x@y>",
        "=?utf-8?q?=0D=0AX:_y?=",
        "a" * 64,
        "a" * 260,
    ]
)
hostile_text = st.one_of(st.text(), st.lists(_PIECES, max_size=8).map("".join), st.characters().map(str))

_labels = st.text(_LABEL, min_size=1, max_size=12)
domains = st.lists(_labels, min_size=1, max_size=4).map(lambda labels: ".".join([*labels, "example"]))
address_literals = st.one_of(
    st.ip_addresses(v=4).map(lambda address: f"[{address}]"),
    st.ip_addresses(v=6).map(lambda address: f"[IPv6:{address}]"),
)
local_parts = st.one_of(
    st.text(_ATEXT, min_size=1, max_size=20),
    st.text("\u00e4\u00df\u4e2d\U0001f4e7z", min_size=1, max_size=10),
    st.text(' !@<>,;:()[]"\\'.replace('"', "").replace("\\", ""), max_size=10).map(lambda text: f'"{text}"'),
)
addresses = st.builds("{}@{}".format, local_parts, st.one_of(domains, address_literals))

ports = st.integers(1, 65_535)
_url_hosts = st.one_of(domains, st.ip_addresses(v=4).map(str), st.ip_addresses(v=6).map(lambda address: f"[{address}]"))
target_texts = st.one_of(
    _url_hosts,
    st.ip_addresses(v=6).map(str),
    st.builds("{}:{}".format, _url_hosts, ports),
    st.builds(
        "{}://{}{}{}".format,
        st.sampled_from(["https", "http", "HTTPS"]),
        _url_hosts,
        st.one_of(st.just(""), ports.map(":{}".format)),
        st.sampled_from(["", "/", "/mxdeliv", "/a/b", "/a;b=c", "/%0d%0a"]),
    ),
)
targets = target_texts.map(Target.parse)

times = st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - the strategy adds it
texts = st.text(max_size=30)
replies = st.builds(
    Reply,
    code=st.integers(0, 999),
    enhanced=st.sampled_from(["", "4.2.1", "5.7.1"]),
    text=texts,
    mta=st.none() | domains,
)
routes = st.builds(
    Route,
    version=st.integers(0, 2**53),
    key=st.one_of(st.just(""), domains),
    targets=st.lists(targets.map(str), max_size=3).map(tuple),
    transport=st.sampled_from(["auto", "https", "smtp"]),
    tls=st.sampled_from([None, "verify", "encrypt", "none"]),
)
envelopes = st.builds(
    Envelope,
    id=st.text(string.ascii_letters + string.digits, min_size=1, max_size=32),
    mail_from=st.one_of(st.just(""), addresses),
    rcpt_to=st.lists(addresses, min_size=1, max_size=4).map(tuple),
    accepted_at=times,
    smtputf8=st.booleans(),
    envid=st.one_of(st.none(), st.text("!+09AZaz~", min_size=1, max_size=20)),
    ret=st.sampled_from([None, "FULL", "HDRS"]),
    notify=st.sampled_from([None, "NEVER", "FAILURE,DELAY", "SUCCESS"]),
    body_ref=st.none(),
)
deliveries = st.builds(
    Delivery,
    envelope=envelopes,
    domain=domains,
    route=routes,
    attempts=st.integers(0, 10_000),
    quick=st.integers(0, 10),
    warned=st.booleans(),
    retry_at=st.none() | times,
    reply=st.none() | replies,
)

# What an AMQP client can put into a header (field tables of AMQP 0-9-1, 4.2.5).
amqp_values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**63 - 1),
        st.floats(),
        st.decimals(allow_nan=False, allow_infinity=False),
        st.binary(max_size=20),
        hostile_text,
        times,
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
