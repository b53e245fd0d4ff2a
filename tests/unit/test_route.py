"""Targets and routes: one spelling for each next hop, and no text that means something else later."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shared.mail.route import Route, Target, TargetError, Tls, parse_targets
from tests.unit.strategies import hostile_text, ports, routes, target_texts


@pytest.mark.parametrize(
    ("text", "host", "smtp_port", "url", "stored"),
    [
        ("b.com", "b.com", None, None, "b.com"),
        ("B.COM.", "b.com", None, None, "b.com"),
        ("b\u00fccher.example", "xn--bcher-kva.example", None, None, "xn--bcher-kva.example"),
        ("_chat.b.com", "_chat.b.com", None, None, "_chat.b.com"),
        ("localhost", "localhost", None, None, "localhost"),
        ("b.com:2525", "b.com", 2525, None, "b.com:2525"),
        ("b.com:00025", "b.com", 25, None, "b.com:25"),
        ("b.com:1", "b.com", 1, None, "b.com:1"),
        ("b.com:65535", "b.com", 65_535, None, "b.com:65535"),
        ("192.0.2.1", "192.0.2.1", None, None, "192.0.2.1"),
        ("[192.0.2.1]", "192.0.2.1", None, None, "192.0.2.1"),
        ("192.0.2.1:2525", "192.0.2.1", 2525, None, "192.0.2.1:2525"),
        ("[192.0.2.1]:2525", "192.0.2.1", 2525, None, "192.0.2.1:2525"),
        ("2001:DB8::1", "2001:db8::1", None, None, "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1", None, None, "2001:db8::1"),
        ("[2001:db8::1]:2525", "2001:db8::1", 2525, None, "[2001:db8::1]:2525"),
        ("[IPv6:2001:db8::1]:2525", "2001:db8::1", 2525, None, "[2001:db8::1]:2525"),
        ("2001:db8::1:2525", "2001:db8::1:2525", None, None, "2001:db8::1:2525"),
        ("::1", "::1", None, None, "::1"),
        ("::ffff:192.0.2.1", "192.0.2.1", None, None, "192.0.2.1"),
        ("https://b.com", "b.com", None, "https://b.com/mxdeliv", "https://b.com/mxdeliv"),
        ("https://b.com/", "b.com", None, "https://b.com/mxdeliv", "https://b.com/mxdeliv"),
        ("HTTPS://B.Com:8443", "b.com", None, "https://b.com:8443/mxdeliv", "https://b.com:8443/mxdeliv"),
        ("https://b.com/In", "b.com", None, "https://b.com/In", "https://b.com/In"),
        ("https://b.com:8443/a/b;c=d", "b.com", None, "https://b.com:8443/a/b;c=d", "https://b.com:8443/a/b;c=d"),
        ("http://b.com", "b.com", None, "http://b.com/mxdeliv", "http://b.com/mxdeliv"),
        ("https://192.0.2.1:8443/", "192.0.2.1", None, "https://192.0.2.1:8443/mxdeliv", "https://192.0.2.1:8443/mxdeliv"),
        ("https://[2001:DB8::1]", "2001:db8::1", None, "https://[2001:db8::1]/mxdeliv", "https://[2001:db8::1]/mxdeliv"),
        ("https://[::1]:8443/x", "::1", None, "https://[::1]:8443/x", "https://[::1]:8443/x"),
        ("https://b\u00fccher.example", "xn--bcher-kva.example", None, "https://xn--bcher-kva.example/mxdeliv",
         "https://xn--bcher-kva.example/mxdeliv"),
    ],
)  # fmt: skip
def test_a_target_is_read_into_one_form(
    text: str, host: str, smtp_port: int | None, url: str | None, stored: str
) -> None:
    """`host:port` names the SMTP port and a URL the HTTPS side (CONTRACT 4.2); equal targets are stored alike."""
    expected = Target(host=host, smtp_port=smtp_port, url=url)
    assert expected == Target.parse(text)
    assert stored == str(expected)


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "b.com ", " b.com", "b com", "b.com\n", "b.com\r\nX: y", "b.com\x00", ".", "-b.com", "*.b.com", "*",
        "a@b.com", "b.com:", ":25", "b.com:0", "b.com:65536", "b.com:99999", "b.com:100000", "b.com:-1", "b.com:+25",
        "b.com:2 5", "b.com:smtp", "b.com:25:25", "b.com/x", "b.com?x", "b.com#x", "127.1", "0x7f000001", "1.2.3.4.5",
        "1.2.3.4/8", "[b.com]", "[b.com]:25", "[", "[]", "[]:25", "[1.2.3.4", "1.2.3.4]", "[::1]25", "[::1", "::1]",
        "fe80::1%eth0", "[fe80::1%eth0]:25", "b.com:\u0662\u0665",
        "://b.com", "ftp://b.com", "smtp://b.com", "file:///etc/passwd", "gopher://b.com", "javascript://b.com",
        "https://", "https:///mxdeliv", "https://:8443", "https://b.com:0", "https://b.com:65536", "https://b.com:x",
        "https://b.com:-1", "https://u@b.com", "https://u:p@b.com", "https://:p@b.com", "https://@b.com",
        "https://b.com?x=y", "https://b.com/#x", "https://b.com/a b", "https://b.com/\r\nX: y", "https://b.com\\@c.com",
        "https://b.com\x00", "https://b.com/\x7f", "https://127.1", "https://0x7f000001", "https://2130706433",
        "https://[::1", "https://[fe80::1%25eth0]", "https://*.b.com", "https://b..com", "https://b.com@c.com/",
        "https://a.com,https://b.com", " https://b.com",
    ],
)  # fmt: skip
def test_what_is_no_target_is_refused(text: str) -> None:
    """A mistyped or malicious target is refused when the rule is made; later it would lose mail or send it astray."""
    with pytest.raises(TargetError):
        Target.parse(text)


@given(target_texts)
@example("https://[::ffff:192.0.2.1]:8443/x")
def test_a_stored_target_reads_back_as_itself(text: str) -> None:
    """A rule stores text and a route carries text: every worker must read the same next hop from it."""
    target = Target.parse(text)
    assert target == Target.parse(str(target))
    assert str(target) == str(Target.parse(str(target)))


@given(st.one_of(hostile_text, hostile_text.map("https://{}".format), hostile_text.map("https://b.com/{}".format)))
def test_any_text_is_a_target_or_a_target_error(text: str) -> None:
    """What passes has nothing in it that could end a request line, a Host header or a log line."""
    try:
        target = Target.parse(text)
    except TargetError:
        return
    assert target == Target.parse(str(target))
    assert not set(str(target)) & set(" \t\r\n\x00\x7f\\")
    assert target.host.isascii()


@pytest.mark.parametrize(
    ("text", "port", "expected"),
    [
        ("b.com", 443, "https://b.com/mxdeliv"),
        ("b.com", 8443, "https://b.com:8443/mxdeliv"),
        ("b.com:2525", 443, "https://b.com/mxdeliv"),
        ("2001:db8::1", 443, "https://[2001:db8::1]/mxdeliv"),
        ("[2001:db8::1]:25", 8443, "https://[2001:db8::1]:8443/mxdeliv"),
        ("https://b.com", 8443, "https://b.com/mxdeliv"),
        ("https://b.com:1443/x", 8443, "https://b.com:1443/x"),
        ("http://b.com", 443, "http://b.com/mxdeliv"),
    ],
)
def test_each_side_leaves_the_other_at_its_default_port(text: str, port: int, expected: str) -> None:
    """An SMTP port never becomes the HTTPS port; a URL is used as it is, and https never silently becomes http."""
    assert expected == Target.parse(text).https_url(port)


@given(target_texts, ports)
def test_the_url_to_post_to_is_a_target_itself(text: str, port: int) -> None:
    """Whatever the target, its URL names the same host."""
    target = Target.parse(text)
    assert target.host == Target.parse(target.https_url(port)).host


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("b.com", ["b.com"]),
        ("b.com, C.com:2525 ,https://d.com", ["b.com", "c.com:2525", "https://d.com/mxdeliv"]),
        ("b.com,b.com:25", ["b.com", "b.com:25"]),
    ],
)
def test_several_targets_keep_their_order(text: str, expected: list[str]) -> None:
    """They are tried in the order they were written."""
    assert expected == [str(each) for each in parse_targets(text)]


@pytest.mark.parametrize("text", ["", " ", ",", "b.com,", ",b.com", "b.com,,c.com", "b.com,B.com.", "b.com,c d"])
def test_a_list_with_a_hole_or_a_double_is_refused(text: str) -> None:
    """It is a typing error, and the person is still there to be asked."""
    with pytest.raises(TargetError):
        parse_targets(text)


@pytest.mark.parametrize(
    ("route", "expected"),
    [
        (Route(version=1), False),
        (Route(version=1, targets=("b.com",)), True),
        (Route(version=1, targets=("b.com",), transport="https"), True),
        (Route(version=1, targets=("b.com",), transport="smtp"), False),
    ],
)
def test_https_comes_first_on_a_rule_only(route: Route, expected: bool) -> None:
    """Without a rule mail goes to the MX, which speaks SMTP."""
    assert expected == route.by_https_first


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ((), None),
        (("b.com", "https://c.com/mxdeliv"), None),
        (
            ("b.com", "c..com"),
            "the rule for a.com is malformed: 'c..com' is neither a host, nor an IP address, nor a URL",
        ),
        (("",), "the rule for a.com is malformed: "),
    ],
)
def test_a_malformed_target_is_the_route_s_fault(targets: tuple[str, ...], expected: str | None) -> None:
    """A rule written with psql may be malformed: its mail waits for the rule to be mended, and the words say which."""
    fault = Route(version=1, key="a.com", targets=targets).fault()
    assert fault is None if expected is None else fault is not None and fault.startswith(expected)


@pytest.mark.parametrize("tls", ["verify", "encrypt"])
def test_a_demand_that_cannot_be_met_is_the_route_s_fault(tls: Tls) -> None:
    """In the clear nothing is verified or encrypted; by SMTP alone the URL does not matter."""
    targets = ("b.com", "http://c.com/mxdeliv")
    fault = Route(version=1, key="a.com", targets=targets, tls=tls).fault()
    assert fault is not None
    assert f"http://c.com/mxdeliv is in the clear, but tls is {tls}" in fault
    for met in (Route(version=1, targets=targets, tls=tls, transport="smtp"), Route(version=1, targets=targets)):
        assert met.fault() is None


@given(routes)
def test_every_target_of_a_route_can_be_read(route: Route) -> None:
    """The transports parse what the router wrote; a target they cannot read would stop the mail."""
    assert route.targets == tuple(str(Target.parse(each)) for each in route.targets)
