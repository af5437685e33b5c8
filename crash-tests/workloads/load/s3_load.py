"""Writes, reads, lists and deletes objects with boto3, and compares every byte with what was acknowledged.

Nothing is repeated. Half of the clients open a connection for each request, the others keep theirs.
"""

import hashlib
import http.client
import random
import threading
import time

import boto3
import botocore.exceptions as problems
from botocore.awsrequest import AWSHTTPConnection
from botocore.config import Config
from tally import Stop, Tally, arguments, run_threads, unread_at_end

SIZES = (0, 1, 900, 4096, 65_536, 300_000)
OBJECTS = 12

# How the connection ended that this thread used last: set by the watched connection, for the classification.
ending = threading.local()


def main():
    given = arguments(
        __doc__.splitlines()[0],
        bucket=("workload", "made if it is not there"),
        key=("workload", "access key"),
        secret=("workload-secret", "secret key"),
        new=(2, "clients with a new connection for each request"),
        kept=(2, "clients that keep their connections"),
    )
    stop, tally = Stop(given.seconds), Tally()
    watch_connections()
    make_bucket(given)
    jobs = [lambda number=number: Client(given, stop, tally, number, "new").work() for number in range(given.new)]
    jobs += [
        lambda number=number: Client(given, stop, tally, given.new + number, "kept").work()
        for number in range(given.kept)
    ]
    run_threads(jobs, stop, tally, give_up=25.0)


def watch_connections():
    """Notes at each connection how often it was used, and how it ended if no answer came; changes nothing of it."""
    connect, request, getresponse = AWSHTTPConnection.connect, AWSHTTPConnection.request, AWSHTTPConnection.getresponse

    def counted_connect(self):
        self.opened = time.monotonic()
        return connect(self)

    def noted(self, call, *args, **options):
        try:
            return call(self, *args, **options)
        except (OSError, http.client.RemoteDisconnected):
            sock = getattr(self, "sock", None)
            ending.unread = sock is None or unread_at_end(sock)
            raise

    def counted_request(self, *args, **options):
        # Without a socket it connects in the request.
        fresh = getattr(self, "sock", None) is None
        ending.unread = False
        ending.carried = 0 if fresh else self.times_used
        ending.age = 0.0 if fresh else time.monotonic() - self.opened
        self.times_used = ending.carried + 1
        return noted(self, request, *args, **options)

    AWSHTTPConnection.connect = counted_connect
    AWSHTTPConnection.request = counted_request
    AWSHTTPConnection.getresponse = lambda self, *args, **options: noted(self, getresponse, *args, **options)


def make_client(given, kind):
    host, port = given.address
    client = boto3.session.Session().client(
        "s3",
        endpoint_url=f"http://{host}:{port}",
        aws_access_key_id=given.key,
        aws_secret_access_key=given.secret,
        region_name="us-east-1",
        verify=False,
        config=Config(
            retries={"total_max_attempts": 1, "mode": "standard"},
            connect_timeout=10,
            read_timeout=20,
            tcp_keepalive=True,
            s3={"addressing_style": "path"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )
    if kind == "new":
        client.meta.events.register("before-send.s3", close_after)
    return client


def close_after(request, **_):
    request.headers["Connection"] = "close"


def make_bucket(given):
    client = make_client(given, "new")
    try:
        client.create_bucket(Bucket=given.bucket)
    except problems.ClientError as error:
        if error.response["Error"].get("Code") not in ("BucketAlreadyExists", "BucketAlreadyOwnedByYou"):
            raise


class Client:
    """One client, with keys of its own, and what it knows of them."""

    def __init__(self, given, stop, tally, number, kind):
        self.given, self.stop, self.tally, self.kind = given, stop, tally, kind
        self.s3 = make_client(given, kind)
        self.chance = random.Random(number)
        # An earlier load may have left its objects.
        self.prefix = f"run-{time.time_ns()}/client-{number}/"
        # Key to the set of digests that may be there; None is for an object that is not there.
        self.may_be = {}

    def work(self):
        steps = (self.put, self.put, self.get, self.get, self.get, self.list, self.delete)
        while not self.stop.is_set():
            self.chance.choice(steps)()
            self.stop.wait(self.chance.choice((0.0, 0.0, 0.01, 0.2 if self.kind == "kept" else 0.0)))
        self.read_all_back()

    def pick(self):
        return f"{self.prefix}{self.chance.randrange(OBJECTS)}"

    def put(self):
        key, body = self.pick(), self.chance.randbytes(self.chance.choice(SIZES))
        before = self.may_be.get(key, {None})
        digest = hashlib.sha256(body).hexdigest()
        # Until it is acknowledged, either may be there.
        self.may_be[key] = before | {digest}
        if self.call(lambda: self.s3.put_object(Bucket=self.given.bucket, Key=key, Body=body)) is not None:
            self.may_be[key] = {digest}

    def delete(self):
        key = self.pick()
        self.may_be[key] = self.may_be.get(key, {None}) | {None}
        if self.call(lambda: self.s3.delete_object(Bucket=self.given.bucket, Key=key)) is not None:
            self.may_be[key] = {None}

    def get(self):
        self.look_at(self.pick())

    def look_at(self, key):
        def read():
            try:
                body = self.s3.get_object(Bucket=self.given.bucket, Key=key)["Body"].read()
            except self.s3.exceptions.NoSuchKey:
                return "none"
            return hashlib.sha256(body).hexdigest()

        found = self.call(read)
        if found is None:
            return
        may_be = self.may_be.get(key, {None})
        digest = None if found == "none" else found
        if digest not in may_be:
            missing = digest is None
            self.tally.failed(
                "lost" if missing else "wrong", f"{key} is {'missing' if missing else 'not what was written'}"
            )
        # What was seen once is what it is.
        self.may_be[key] = {digest}

    def list(self):
        answer = self.call(lambda: self.s3.list_objects_v2(Bucket=self.given.bucket, Prefix=self.prefix))
        if answer is None:
            return
        listed = {entry["Key"] for entry in answer.get("Contents", ())}
        for key, may_be in self.may_be.items():
            if None not in may_be and key not in listed:
                self.tally.failed("lost", f"{key} is not listed")
            if may_be == {None} and key in listed:
                self.tally.failed("wrong", f"{key} is listed, and was deleted")

    def read_all_back(self):
        for key in list(self.may_be):
            self.look_at(key)

    def call(self, what):
        """The answer, or None after a failure, which is counted."""
        began = time.monotonic()
        ending.carried, ending.age, ending.unread = 0, None, False
        try:
            answer = what()
        except (problems.ClientError, problems.BotoCoreError, OSError) as error:
            self.tally.failed(kind_of(error), f"{self.kind}: {error}", ending.carried, ending.age)
            self.stop.wait(0.05)
            return None
        self.tally.ok(time.monotonic() - began)
        return answer if answer is not None else ""


def kind_of(error):
    if isinstance(error, problems.ClientError):
        return "error_status"
    if isinstance(error, (problems.ConnectTimeoutError, problems.ReadTimeoutError)):
        return "timeout"
    if isinstance(error, problems.EndpointConnectionError):
        return "refused"
    if isinstance(error, (problems.IncompleteReadError, problems.ResponseStreamingError)):
        return "cut"
    if ending.carried and ending.unread:
        return "idle_raced"
    text = f"{error} {error.__cause__!r} {error.__context__!r}".lower()
    return "reset" if "reset" in text or "broken pipe" in text else "cut"


if __name__ == "__main__":
    main()
