"""Try the targets of a rule without sending mail: what answers there, and would it take mail for the rule's key?

Over HTTPS an empty request that names no recipient, over SMTP a transaction that ends before DATA. Nothing is raised
for a bad target: whatever is wrong with it is what was found.
"""

import asyncio
import contextlib
import errno
import re
import ssl
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urlsplit

import msgspec

from shared.delivery.https import FAULTS, Clients, first_bytes, open_clients
from shared.delivery.resolver import Resolver
from shared.delivery.smtp import ConnectionFault, Session, open_session
from shared.delivery.tls import Contexts, for_https
from shared.mail.mxdeliv import speaks
from shared.mail.route import Target, Tls
from shared.mail.rule import ANY, Rule

SECONDS = 8.0  # for a target, over all that is tried there
_ADDRESSES = 10  # of a host; what a delivery tries too
_FAULTS = (*FAULTS, ConnectionFault)
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_FIELDS = [("Content-Type", "application/octet-stream"), ("Accept-Encoding", "identity")]
_VERDICTS = {True: "an mxdeliv", False: "no mxdeliv", None: "whether there is an mxdeliv cannot be known"}
_NAMES = 3  # of a certificate that are shown
_LONGEST = 300  # characters of what a stranger says that are shown
_ISSUER = ("2.5.4.3", "2.5.4.10")  # common name, organisation
_T = TypeVar("_T")


class HttpsFound(msgspec.Struct, frozen=True, kw_only=True):
    """What is there for `POST /mxdeliv`.

    Attributes:
        url: Where the empty request went.
        speaks: True: an mxdeliv answers; False: something else, nothing, or nothing that the rule may talk to (its
            certificate does not verify and has to); None: it cannot be known, as with a 5xx.
        detail: The answer or the fault, in one phrase.
        certificate: For whom, by whom, until when, and whether it verifies; None without one.
        verified: Whether the certificate verifies, also where nothing demands it; None when that is not known.
    """

    url: str
    speaks: bool | None
    detail: str
    certificate: str | None = None
    verified: bool | None = None


class SmtpFound(msgspec.Struct, frozen=True, kw_only=True):
    """What is there for SMTP.

    Attributes:
        where: Host, address and port.
        reachable: A session as the rule demands it could be opened, or the host asked to come later.
        accepts: True: mail for `recipient` would be taken; False: refused for good; None: "later", or not asked.
        recipient: The address asked for.
        detail: The reply or the fault.
        certificate: For whom, by whom, until when, and whether it verifies; None without TLS.
        verified: Whether the certificate verifies, also where nothing demands it; None when that is not known.
    """

    where: str
    reachable: bool
    accepts: bool | None
    recipient: str
    detail: str
    certificate: str | None = None
    verified: bool | None = None


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What was found at one target.

    Attributes:
        target: As the rule names it.
        https: None when the rule's transport leaves it out.
        smtp: None when the rule's transport leaves it out.
        warnings: Sentences for the person who sets the rule; empty when all is well.
        usable: False when mail sent there would be lost, bounced or stuck.
    """

    target: str
    https: HttpsFound | None
    smtp: SmtpFound | None
    warnings: list[str]
    usable: bool


async def probe(
    rule: Rule,
    *,
    contexts: Contexts,
    resolver: Resolver,
    smtp_port: int,
    https_port: int,
    hostname: str,
    seconds: float = SECONDS,
) -> list[Found]:
    """Try every target of a rule, all at once; return what was found in the order of the targets.

    Args:
        rule: The rule, saved or not.
        contexts: TLS contexts.
        resolver: Names to addresses.
        smtp_port: Where a target names none.
        https_port: Where a target names none.
        hostname: What we call ourselves in EHLO.
        seconds: How long it may take.
    """
    deadline = asyncio.get_running_loop().time() + seconds
    targets = rule.targets()
    async with open_clients(contexts, resolver, limit=len(targets)) as clients:
        prober = _Prober(rule, contexts, resolver, clients, smtp_port, https_port, hostname, deadline)
        return await asyncio.gather(*map(prober.target, targets))


@dataclass(frozen=True, slots=True)
class _Prober:
    rule: Rule
    contexts: Contexts
    resolver: Resolver
    clients: Clients
    smtp_port: int
    https_port: int
    hostname: str
    deadline: float  # of the loop's clock

    async def target(self, target: Target) -> Found:
        async def https() -> HttpsFound | None:
            return None if self.rule.transport == "smtp" else await self._https(target)

        async def smtp() -> SmtpFound | None:
            return None if self.rule.transport == "https" else await self._smtp(target)

        return _judge(self.rule, target, *await asyncio.gather(https(), smtp()))

    async def _https(self, target: Target) -> HttpsFound:
        parts = urlsplit(target.https_url(self.https_port))

        async def handshake(tls: Tls) -> bytes | None:
            context = self.contexts.verify if tls == "verify" else self.contexts.encrypt
            return await self._first(target.host, lambda each: _shown(target.host, each, parts.port or 443, context))

        if parts.scheme == "http":
            return await self._post(target)
        found, (certificate, verified) = await asyncio.gather(self._post(target), _trust(handshake))
        return msgspec.structs.replace(found, certificate=certificate, verified=verified)

    async def _post(self, target: Target) -> HttpsFound:
        url = target.https_url(self.https_port)
        client = self.clients[for_https(self.rule.tls, target.host)]
        try:
            async with (
                asyncio.timeout_at(self.deadline),
                client.stream("POST", url, headers=_FIELDS, content=b"") as response,
            ):
                body = await first_bytes(response)
        except _FAULTS as error:
            return HttpsFound(url=url, speaks=False, detail=_words(error))
        kind = response.headers.get("content-type", "")
        verdict = speaks(response.status_code, kind, body)
        page = verdict is False or "html" in kind
        said = f"({kind.partition(';')[0] or 'no type'})" if page else body.decode("utf-8", "replace")
        answer = _clean(f"answers {response.status_code} {said}")
        return HttpsFound(url=url, speaks=verdict, detail=f"{answer}: {_VERDICTS[verdict]}")

    async def _smtp(self, target: Target) -> SmtpFound:
        host, port = target.host, target.smtp_port or self.smtp_port
        where, recipient = f"{host} port {port}", _recipient(self.rule.lookup_key)
        found = SmtpFound(where=where, reachable=False, accepts=None, recipient=recipient, detail="")

        async def connect(address: str, tls: Tls | None) -> tuple[str, Session]:
            contexts, name = self.contexts, self.hostname
            return address, await open_session(host, address, port, tls=tls, contexts=contexts, hostname=name)

        async def handshake(tls: Tls) -> bytes | None:
            _, session = await self._first(host, lambda each: connect(each, tls))
            try:
                return session.peer_certificate
            finally:
                await self._end(session)

        try:
            address, session = await self._first(host, lambda each: connect(each, self.rule.tls))
        except _FAULTS as error:
            certificate, verified = (None, None) if _mistrust(error) is None else await _trust(handshake)
            found = msgspec.structs.replace(found, reachable=_later(error), detail=_words(error))
        else:
            if address != host:
                found = msgspec.structs.replace(found, where=f"{host} ({address}) port {port}")
            shown = session.peer_certificate
            found = await self._ask(session, found)
            certificate, verified = (None, None) if shown is None else await _trust(handshake, shown=shown)
        return msgspec.structs.replace(found, certificate=certificate, verified=verified)

    async def _ask(self, session: Session, found: SmtpFound) -> SmtpFound:
        try:
            async with asyncio.timeout_at(self.deadline):
                reply = await session.ask(found.recipient)
        except _FAULTS as error:
            return msgspec.structs.replace(found, reachable=True, detail=_words(error))
        finally:
            await self._end(session)
        accepts = {2: True, 5: False}.get(reply.code // 100)
        return msgspec.structs.replace(found, reachable=True, accepts=accepts, detail=str(reply))

    async def _end(self, session: Session) -> None:
        try:
            async with asyncio.timeout_at(self.deadline):
                await session.quit()
        except TimeoutError:
            pass
        finally:
            session.close()

    async def _first(self, host: str, connect: Callable[[str], Awaitable[_T]]) -> _T:
        """Connect to the first address that can be; a silent one uses up no more than its share of the time."""
        clock = asyncio.get_running_loop().time
        async with asyncio.timeout_at(self.deadline):
            addresses = await self.resolver.addresses(host, ruled=True)
        if not isinstance(addresses, list):
            raise OSError(addresses.reply.text)
        *others, last = addresses[:_ADDRESSES]
        for number, address in enumerate(others):
            with contextlib.suppress(*_FAULTS):
                async with asyncio.timeout((self.deadline - clock()) / (len(others) + 1 - number)):
                    return await connect(address)
        async with asyncio.timeout_at(self.deadline):
            return await connect(last)


async def _shown(host: str, address: str, port: int, context: ssl.SSLContext) -> bytes | None:
    """Return the certificate, as DER, that a host shows to this context."""
    _, writer = await asyncio.open_connection(address, port, ssl=context, server_hostname=host)
    tls: ssl.SSLObject = writer.get_extra_info("ssl_object")
    shown = tls.getpeercert(binary_form=True)
    writer.transport.abort()
    return shown


async def _trust(
    handshake: Callable[[Tls], Awaitable[bytes | None]], *, shown: bytes | None = None
) -> tuple[str | None, bool | None]:
    """Return what the host's certificate says and whether it verifies; `shown` is it, where it is known already."""
    try:
        shown = await handshake("verify") or shown
    except _FAULTS as error:
        reason = _mistrust(error)
        verified = None if reason is None else False
        words = "whether it verifies is not known" if reason is None else f"NOT verified: {reason}"
    else:
        verified, words = True, "verified"
    if shown is None:
        with contextlib.suppress(*_FAULTS):
            shown = await handshake("encrypt")
    return None if shown is None else f"{_described(shown)}, {words}", verified


def _described(der: bytes) -> str:
    try:
        from cryptography import x509  # noqa: PLC0415 - nobody else needs it, and it takes long to load

        certificate = x509.load_der_x509_certificate(der)
        issuer, until = certificate.issuer, certificate.not_valid_after_utc
        by = [str(each.value) for oid in _ISSUER for each in issuer.get_attributes_for_oid(x509.ObjectIdentifier(oid))]
        held = [each.value for each in certificate.extensions if isinstance(each.value, x509.SubjectAlternativeName)]
        names = [str(name.value) for each in held for name in each] or [certificate.subject.rfc4514_string()]
    except Exception as error:  # noqa: BLE001 - a stranger's bytes, and nothing is to be raised for them
        return f"unreadable ({_clean(str(error))})"
    more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
    whose = f"for {', '.join(names[:_NAMES])}{more}, issued by {(by or [issuer.rfc4514_string()])[0]}"
    return f"{_clean(whose)}, until {until:%Y-%m-%d}"


def _judge(rule: Rule, target: Target, https: HttpsFound | None, smtp: SmtpFound | None) -> Found:
    key, host = rule.lookup_key, target.host
    by_https = https is not None and https.speaks is not False
    by_smtp = smtp is not None and smtp.reachable
    details = [f"over {way}: {found.detail}" for way, found in (("HTTPS", https), ("SMTP", smtp)) if found]
    warnings = _mistrusted(rule, target, https, smtp)
    if smtp and smtp.accepts is False:
        asked = "" if key in smtp.recipient else f"{smtp.recipient}: "
        sentence = (
            f"{host} refuses mail for {key} ({asked}{smtp.detail}): it seems to take mail for its own domains only, so "
            "mail sent there would be lost or bounced"
        )
        if https and https.speaks:
            sentence += "; over HTTPS such a server may answer 200 and drop the mail without a word (a black hole)"
        warnings.append(sentence)
    elif not by_https and not by_smtp:
        warnings.append(f"nothing at {target} would take mail for {key}: {'; '.join(details)}")
    elif https and https.speaks and not (smtp and smtp.accepts):
        why = f"by SMTP it could not be asked ({smtp.detail})" if smtp else "the rule leaves out SMTP, which could tell"
        warnings.append(
            f"it cannot be known whether {target} forwards mail for {key} or drops it without a word: {why}"
        )
    elif smtp and by_smtp and smtp.accepts is None:
        warnings.append(f"{host} does not say yet whether it takes mail for {key}: {smtp.detail}")
    if https and https.speaks is None:
        warnings.append(f"mail for {key} may have to wait, as {target} is not well over HTTPS: {https.detail}")
    # That one domain is refused says little of all others, and no domain stands for them.
    black_hole = smtp is not None and smtp.accepts is False and key != ANY
    usable = (by_https or by_smtp) and not black_hole
    return Found(target=str(target), https=https, smtp=smtp, warnings=warnings, usable=usable)


def _mistrusted(rule: Rule, target: Target, https: HttpsFound | None, smtp: SmtpFound | None) -> list[str]:
    """Return a sentence for each certificate that has to verify and does not."""
    key = rule.lookup_key
    demanded = (("HTTPS", https, for_https(rule.tls, target.host)), ("SMTP", smtp, rule.tls))
    return [
        f"the certificate that {target.host} shows over {way} does not verify ({found.certificate or 'not readable'}): "
        + (f"{way} will not be used for {key}" if https and smtp else f"deliveries by the rule for {key} will fail")
        for way, found, tls in demanded
        if found and found.verified is False and tls == "verify"
    ]


def _recipient(key: str) -> str:
    """Return whom to ask for. RFC 5321 4.5.1 has a postmaster wherever mail is taken."""
    if key == ANY:
        return "postmaster@example.org"
    return f"postmaster@pushpush-probe.{key[2:]}" if key.startswith("*.") else f"postmaster@{key}"


def _chain(error: BaseException) -> Iterator[BaseException]:
    following: BaseException | None = error
    while following is not None:
        yield following
        following = following.__cause__ or following.__context__


def _mistrust(error: BaseException) -> str | None:
    """Return why a certificate does not verify, or None when something else is wrong."""
    found = (each for each in _chain(error) if isinstance(each, ssl.SSLCertVerificationError))
    return next((_clean(str(getattr(each, "verify_message", each))).rstrip(".") for each in found), None)


def _later(error: BaseException) -> bool:
    """Say whether the host itself asked to come later: with a 4yz greeting, for example."""
    reply = error.reply if isinstance(error, ConnectionFault) else None
    return reply is not None and reply.mta is not None and reply.code // 100 == 4  # noqa: PLR2004


def _words(error: BaseException) -> str:
    chain = [*_chain(error)]
    if (reason := _mistrust(error)) is not None:
        return f"its certificate does not verify: {reason}"
    if isinstance(error, ConnectionFault) and error.reply.mta is not None:
        return str(error.reply)
    if any(isinstance(each, TimeoutError) for each in chain):
        return "no answer in time"
    if any(isinstance(each, OSError) and each.errno == errno.ECONNREFUSED for each in chain):
        return "connection refused"
    return _clean(error.reply.text if isinstance(error, ConnectionFault) else str(chain[-1]) or repr(chain[-1]))


def _clean(text: str) -> str:
    return _UNPRINTABLE.sub("?", " ".join(text.split()))[:_LONGEST]
