# Varnish in front of legacy_poll: held polls below /poll/ pass by the cache.
# The tests run this file; what each line is for stands in docs/deploy/proxies.md.
vcl 4.1;

backend legacy_poll {
    .host = "127.0.0.1";
    .port = "8000";
    .connect_timeout = 5s;
    .first_byte_timeout = 60s;
    .between_bytes_timeout = 60s;
}

sub vcl_recv {
    if (req.url ~ "^/poll/") {
        # Cuts the prefix off, as the server by itself wants it. Inside an app, leave it out.
        set req.url = regsub(req.url, "^/poll/", "/");
        set req.backend_hint = legacy_poll;
        return (pass);
    }
}
