/* The load of `python -m bench peers`: N polls held at once over N kept connections, in one process, on one epoll.
 *
 *     load DIALECT COUNT TARGET CURSOR PORT [PORT...]
 *
 * Connections go to the first PORT of 127.0.0.1; the others are those of servers behind it. TARGET is what is asked for,
 * up to where the cursor goes; each '#' in it becomes the connection's number. CURSOR is where an `ours` starts, else -.
 * Each request has the twelve headers of a browser and a cookie that no other connection has.
 *
 * It is told what to do by lines on its standard input, and answers each by one line on its standard output:
 *
 *     hold          everybody who is not asking asks (at first: connects before); "SECONDS" until all were held
 *     wait          ok; from now on whoever has an answer waits for the next `hold`
 *     at-once       ok; from now on whoever has an answer asks again at once, or when no other answer is there to be
 *                   read: asking takes longer than reading, and would be part of the others' times
 *     all N COUNT   "MOMENT" at which the last of COUNT connections had message N whole (CLOCK_MONOTONIC)
 *     times N FROM  "FIRST P50 P99 MAX" of how many milliseconds after the moment FROM they had it
 *     counts N      "MISSED DUPLICATED UNORDERED" of the messages 0 to N - 1, over all connections
 *
 * Anything that should not be, such as a closed connection, is a line "error: ..." and the end.
 *
 * A message is JSON with `"n": NUMBER` in it, counted from 0. That every poll is held is seen in the kernel: all have
 * asked, and nothing of it is unread in the receive queues of any PORT, at two looks. Connections are not opened
 * faster than they are accepted, or full queues would cost seconds that say nothing about a server.
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <math.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MESSAGES 4096
#define PORTS 4
#define ROOM (1 << 20)
/* Opened between two looks at the queues of those not accepted yet, and how many may wait there. */
#define OPENED 64
#define QUEUED 256
/* Who ask again between two looks at whether there are answers. */
#define ASKED 4

enum dialect { OURS, NCHAN, GOLONGPOLL, SOCKETIO, VIEW };
static const char *const DIALECTS[] = {"ours", "nchan", "golongpoll", "socketio", "view"};

enum state { NEW, ASKING, ANSWERED };
/* Engine.IO asks for a session, then joins the namespace, then polls; the others only poll. */
enum step { OPEN, JOIN, POLL };

struct poll {
    int fd;
    enum state state;
    enum step step;
    char cookie[176];
    /* Where to go on: a cursor, Last-Modified, a time, a session; and what a dialect has beside it. */
    char cursor[256];
    char tag[128];
    long highest;
    unsigned char seen[MESSAGES / 8];
    char *part;
    size_t part_length;
};

static enum dialect dialect;
static const char *target;
static unsigned count, opened, asking, ready;
static int ports[PORTS], port_count;
static int poller, diagnosis;
static struct poll *polls;
static double *arrivals[MESSAGES];
static unsigned arrived[MESSAGES];
static unsigned long duplicated, unordered;
static int at_once;
/* Who will ask again: a ring. */
static struct poll **next;
static unsigned next_first, next_count;
static char answer[ROOM];

static void die(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    printf("error: ");
    vprintf(format, arguments);
    printf("\n");
    fflush(stdout);
    va_end(arguments);
    exit(1);
}

static double moment(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + now.tv_nsec / 1e9;
}

/* ---- what the kernel knows ---------------------------------------------------------------------------------- */

/* How many sockets *port* has in one of *states*, and what is in their receive queues: bytes that nobody read, or for
 * the one that listens connections that nobody accepted. */
static void look(int port, unsigned states, unsigned *sockets, unsigned long *queued)
{
    static char reply[1 << 16];
    struct {
        struct nlmsghdr header;
        struct inet_diag_req_v2 body;
    } request = {0};
    request.header.nlmsg_len = sizeof request;
    request.header.nlmsg_type = SOCK_DIAG_BY_FAMILY;
    request.header.nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP;
    request.body.sdiag_family = AF_INET;
    request.body.sdiag_protocol = IPPROTO_TCP;
    request.body.idiag_states = states;
    request.body.id.idiag_sport = htons(port);
    if (send(diagnosis, &request, sizeof request, 0) < 0)
        die("sock_diag: %s", strerror(errno));
    *sockets = 0;
    *queued = 0;
    for (;;) {
        ssize_t length = recv(diagnosis, reply, sizeof reply, 0);
        if (length < 0)
            die("sock_diag: %s", strerror(errno));
        struct nlmsghdr *header = (struct nlmsghdr *)reply;
        for (; NLMSG_OK(header, length); header = NLMSG_NEXT(header, length)) {
            if (header->nlmsg_type == NLMSG_DONE)
                return;
            if (header->nlmsg_type == NLMSG_ERROR)
                die("sock_diag: refused");
            struct inet_diag_msg *found = NLMSG_DATA(header);
            if (ntohs(found->id.idiag_sport) == port) {
                *sockets += 1;
                *queued += found->idiag_rqueue;
            }
        }
    }
}

static int accepts(void)
{
    for (int each = 0; each < port_count; each++) {
        unsigned sockets;
        unsigned long waiting;
        look(ports[each], 1 << TCP_LISTEN, &sockets, &waiting);
        if (waiting > QUEUED)
            return 0;
    }
    return 1;
}

static int all_read(void)
{
    for (int each = 0; each < port_count; each++) {
        unsigned sockets;
        unsigned long unread;
        look(ports[each], 1 << TCP_ESTABLISHED | 1 << TCP_CLOSE_WAIT, &sockets, &unread);
        if (unread || (each == 0 && sockets < count))
            return 0;
    }
    return 1;
}

/* ---- requests ----------------------------------------------------------------------------------------------- */

static const char HEADERS[] =
    "Host: shop.example.com\r\n"
    "Connection: keep-alive\r\n"
    "sec-ch-ua-platform: \"Windows\"\r\n"
    "User-Agent: Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) "
    "Chrome/131.0.0.0 Safari/537.36\r\n"
    "Accept: application/json, text/javascript, */*; q=0.01\r\n"
    "sec-ch-ua: \"Google Chrome\";v=\"131\", \"Chromium\";v=\"131\", \"Not_A Brand\";v=\"24\"\r\n"
    "sec-ch-ua-mobile: ?0\r\n"
    "Sec-Fetch-Site: same-origin\r\n"
    "Sec-Fetch-Mode: cors\r\n"
    "Referer: https://shop.example.com/orders/open\r\n"
    "Accept-Encoding: gzip, deflate, br, zstd\r\n"
    "Accept-Language: en-GB,en;q=0.9,de;q=0.8\r\n";

/* As long as a signed session's with a user, a language and a token in it. */
static void bake(struct poll *poll, unsigned number)
{
    static const char LETTERS[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    unsigned long long state = 0x9E3779B97F4A7C15ull * (number + 1);
    int at = snprintf(poll->cookie, sizeof poll->cookie, "session=");
    for (int letter = 0; letter < 118; letter++) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        poll->cookie[at++] = letter == 70 || letter == 77 ? '.' : LETTERS[state >> 58];
    }
    snprintf(poll->cookie + at, sizeof poll->cookie - at, "; theme=dark; visitor=%08u", number);
}

static int put(char *request, int at, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    at += vsnprintf(request + at, ROOM - at, format, arguments);
    va_end(arguments);
    if (at >= ROOM)
        die("a request of over %d bytes", ROOM);
    return at;
}

static void ask(struct poll *poll)
{
    static char request[ROOM];
    int at = put(request, 0, poll->step == JOIN ? "POST " : "GET ");
    for (const char *each = target; *each; each++)
        if (*each == '#')
            at = put(request, at, "%u", (unsigned)(poll - polls));
        else
            request[at++] = *each;
    if (dialect == OURS)
        at = put(request, at, "&cursor=%s", poll->cursor);
    else if (dialect == GOLONGPOLL && *poll->cursor)
        at = put(request, at, "&since_time=%s&last_id=%s", poll->cursor, poll->tag);
    else if (dialect == VIEW)
        at = put(request, at, "?after=%ld", poll->highest);
    else if (dialect == SOCKETIO && poll->step != OPEN)
        at = put(request, at, "&sid=%s", poll->cursor);
    at = put(request, at, " HTTP/1.1\r\n%sCookie: %s\r\n", HEADERS, poll->cookie);
    if (dialect == NCHAN && *poll->cursor)
        at = put(request, at, "If-Modified-Since: %s\r\nIf-None-Match: %s\r\n", poll->cursor, poll->tag);
    if (poll->step == JOIN)
        at = put(request, at, "Content-Type: text/plain;charset=UTF-8\r\nContent-Length: 2\r\n\r\n40");
    else
        at = put(request, at, "\r\n");
    /* One request into an empty socket buffer: it always fits. */
    if (send(poll->fd, request, at, MSG_NOSIGNAL) != at)
        die("connection %u took no request: %s", (unsigned)(poll - polls), strerror(errno));
    poll->state = ASKING;
    asking++;
}

static void open_one(void)
{
    struct poll *poll = &polls[opened++];
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(ports[0])};
    struct linger reset = {.l_onoff = 1};
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = poll};
    int on = 1;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    poll->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (poll->fd < 0 || connect(poll->fd, (struct sockaddr *)&address, sizeof address) < 0)
        die("connection %u: %s", opened, strerror(errno));
    setsockopt(poll->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    /* No TIME_WAIT of ours: the next run needs the ports. */
    setsockopt(poll->fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    if (fcntl(poll->fd, F_SETFL, O_NONBLOCK) < 0 || epoll_ctl(poller, EPOLL_CTL_ADD, poll->fd, &event) < 0)
        die("connection %u: %s", opened, strerror(errno));
    ask(poll);
}

/* ---- answers ------------------------------------------------------------------------------------------------ */

/* The value of header *name* (with its colon) into *value*; whether it is there. */
static int header(const char *head, const char *end, const char *name, char *value, size_t room)
{
    size_t length = strlen(name);
    for (const char *line = head; line < end;) {
        const char *next = memchr(line, '\n', end - line);
        next = next ? next : end;
        if ((size_t)(next - line) > length && !strncasecmp(line, name, length)) {
            const char *from = line + length;
            while (from < next && *from == ' ')
                from++;
            size_t size = next - from;
            while (size && (from[size - 1] == '\r' || from[size - 1] == ' '))
                size--;
            if (size >= room)
                die("header %s has %zu bytes", name, size);
            memcpy(value, from, size);
            value[size] = 0;
            return 1;
        }
        line = next + 1;
    }
    return 0;
}

/* The last text (or number) behind *key* in *body*. */
static void last_value(const char *body, const char *end, const char *key, char *value, size_t room)
{
    size_t length = strlen(key);
    const char *found = NULL, *next = body;
    while ((next = memmem(next, end - next, key, length)))
        found = next += length;
    if (!found)
        return;
    while (found < end && (*found == ' ' || *found == ':' || *found == '"'))
        found++;
    size_t size = 0;
    while (found + size < end && size + 1 < room && !strchr(",\"}", found[size]))
        size++;
    memcpy(value, found, size);
    value[size] = 0;
}

static void note(struct poll *poll, long number, double now)
{
    if (number < 0 || number >= MESSAGES)
        die("message %ld", number);
    if (poll->seen[number / 8] & 1 << number % 8) {
        duplicated++;
        return;
    }
    poll->seen[number / 8] |= 1 << number % 8;
    if (number < poll->highest)
        unordered++;
    else
        poll->highest = number;
    if (!arrivals[number]) {
        arrivals[number] = malloc(count * sizeof **arrivals);
        for (unsigned each = 0; each < count; each++)
            arrivals[number][each] = NAN;
    }
    arrivals[number][poll - polls] = now;
    arrived[number]++;
}

/* Notes an answer that is whole; whether it had messages. */
static int understand(struct poll *poll, int status, const char *body, const char *end, double now)
{
    const char *const head = answer;
    if (dialect == OURS && !header(head, body, "legacy-poll-cursor:", poll->cursor, sizeof poll->cursor))
        die("an answer without a cursor");
    if (dialect == NCHAN && status == 200)
        if (!header(head, body, "last-modified:", poll->cursor, sizeof poll->cursor) ||
            !header(head, body, "etag:", poll->tag, sizeof poll->tag))
            die("an answer without Last-Modified and Etag");
    if (dialect == GOLONGPOLL) {
        last_value(body, end, "\"timestamp\"", poll->cursor, sizeof poll->cursor);
        last_value(body, end, "\"id\"", poll->tag, sizeof poll->tag);
    }
    if (poll->step == OPEN) {
        last_value(body, end, "\"sid\"", poll->cursor, sizeof poll->cursor);
        poll->step = JOIN;
        return 0;
    }
    if (poll->step == JOIN) {
        poll->step = POLL;
        return 0;
    }
    int messages = 0;
    for (const char *at = body; (at = memmem(at, end - at, "\"n\":", 4)); messages++) {
        at += 4;
        note(poll, strtol(at, NULL, 10), now);
    }
    return messages;
}

/* Takes the chunks from *body* together; how long that makes it, and how many bytes it took, or 0 if more must come. */
static size_t unchunked(char *body, const char *end, size_t *taken)
{
    char *from = body, *to = body;
    for (;;) {
        char *line = memmem(from, end - from, "\r\n", 2);
        if (!line)
            return 0;
        size_t size = strtoul(from, NULL, 16);
        from = line + 2;
        if ((size_t)(end - from) < size + 2)
            return 0;
        memmove(to, from, size);
        to += size;
        from += size + 2;
        if (!size) {
            *taken = from - body;
            return to - body;
        }
    }
}

static void read_answer(struct poll *poll)
{
    size_t length = poll->part_length;
    if (length)
        memcpy(answer, poll->part, length);
    ssize_t got = recv(poll->fd, answer + length, ROOM - 1 - length, 0);
    if (got < 0 && errno == EAGAIN)
        return;
    if (got <= 0)
        die("the server closed connection %u: %s", (unsigned)(poll - polls), got ? strerror(errno) : "end");
    if (poll->state != ASKING)
        die("an answer that nobody asked for: %.300s", answer);
    length += got;
    answer[length] = 0;
    char *body = memmem(answer, length, "\r\n\r\n", 4), value[32];
    size_t body_length = 0, taken = 0;
    int status = 0, is_whole = 0;
    if (body) {
        body += 4;
        status = atoi(answer + sizeof "HTTP/1.1");
        if (header(answer, body, "content-length:", value, sizeof value)) {
            taken = body_length = strtoul(value, NULL, 10);
            is_whole = (size_t)(answer + length - body) >= taken;
        } else if (status == 204 || status == 304) {
            is_whole = 1;
        } else if (header(answer, body, "transfer-encoding:", value, sizeof value) && !strcmp(value, "chunked")) {
            /* The chunks are put together only once the last is here: until then these bytes are read again. */
            is_whole = !memcmp(answer + length - 5, "0\r\n\r\n", 5);
            body_length = is_whole ? unchunked(body, answer + length, &taken) : 0;
        } else {
            die("an answer of unknown length: %.500s", answer);
        }
    }
    if (!is_whole) {
        poll->part = realloc(poll->part, length);
        memcpy(poll->part, answer, length);
        poll->part_length = length;
        return;
    }
    double now = moment();
    if (body + taken != answer + length)
        die("more than an answer: %.500s", answer);
    if (status != 200 && status != 206 && status != 204 && status != 304)
        die("answered %.500s", answer);
    free(poll->part);
    poll->part = NULL;
    poll->part_length = 0;
    poll->state = ANSWERED;
    asking--;
    int was_ready = poll->step == POLL;
    int messages = understand(poll, status, body, body + body_length, now);
    ready += !was_ready && poll->step == POLL;
    /* An answer without a message is one that ended at its time: that is nothing to wait for. */
    if (!messages)
        ask(poll);
    else if (at_once)
        next[(next_first + next_count++) % count] = poll;
}

static void ask_again(void)
{
    for (int each = 0; each < ASKED && next_count; each++, next_count--) {
        ask(next[next_first]);
        next_first = (next_first + 1) % count;
    }
}

/* ---- commands ----------------------------------------------------------------------------------------------- */

static struct {
    enum { NOTHING, HOLD, ALL } what;
    double begun, first_look;
    long number;
    unsigned wanted;
} command;

static int by_size(const void *left, const void *right)
{
    double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

static double rank(const double *sorted, unsigned many, double share)
{
    long at = (long)ceil(share * many) - 1;
    return sorted[at < 0 ? 0 : at];
}

static void times(long number, double from)
{
    double *sorted = malloc(count * sizeof *sorted);
    unsigned many = 0;
    if (number < 0 || number >= MESSAGES || !arrivals[number])
        die("nobody has message %ld", number);
    for (unsigned each = 0; each < count; each++)
        if (!isnan(arrivals[number][each]))
            sorted[many++] = 1e3 * (arrivals[number][each] - from);
    qsort(sorted, many, sizeof *sorted, by_size);
    printf("%.3f %.3f %.3f %.3f\n", sorted[0], rank(sorted, many, 0.5), rank(sorted, many, 0.99),
           sorted[many - 1]);
    free(sorted);
}

static void obey(const char *line)
{
    long number;
    double from;
    unsigned wanted;
    if (!strcmp(line, "hold")) {
        command.what = HOLD;
        command.first_look = 0;
        command.begun = moment();
        for (unsigned each = 0; each < opened; each++)
            if (polls[each].state == ANSWERED)
                ask(&polls[each]);
        next_count = 0;
    } else if (!strcmp(line, "wait") || !strcmp(line, "at-once")) {
        at_once = line[0] == 'a';
        printf("ok\n");
    } else if (sscanf(line, "all %ld %u", &number, &wanted) == 2 && number >= 0 && number < MESSAGES) {
        command.what = ALL;
        command.number = number;
        command.wanted = wanted;
    } else if (sscanf(line, "times %ld %lf", &number, &from) == 2) {
        times(number, from);
    } else if (sscanf(line, "counts %ld", &number) == 1 && number <= MESSAGES) {
        unsigned long missed = 0;
        for (long each = 0; each < number; each++)
            missed += count - arrived[each];
        printf("%lu %lu %lu\n", missed, duplicated, unordered);
    } else {
        die("what is %s?", line);
    }
    fflush(stdout);
}

static void read_commands(void)
{
    static char line[256];
    static size_t length;
    ssize_t got = read(STDIN_FILENO, line + length, sizeof line - 1 - length);
    if (got <= 0)
        exit(0);
    length += got;
    line[length] = 0;
    for (char *end; (end = strchr(line, '\n')); length -= end + 1 - line, memmove(line, end + 1, length + 1)) {
        *end = 0;
        obey(line);
    }
}

/* Whether the command under way is done, then answers it. */
static void go_on(void)
{
    if (command.what == ALL && arrived[command.number] >= command.wanted) {
        double last = 0;
        for (unsigned each = 0; each < count; each++)
            if (arrivals[command.number][each] > last)
                last = arrivals[command.number][each];
        printf("%.9f\n", last);
        command.what = NOTHING;
    }
    if (command.what == HOLD && opened == count && ready == count && asking == count) {
        double now = moment();
        if (!all_read()) {
            command.first_look = 0;
        } else if (!command.first_look) {
            command.first_look = now;
        } else {
            printf("%.6f\n", command.first_look - command.begun);
            command.what = NOTHING;
        }
    }
    fflush(stdout);
}

int main(int argc, char **argv)
{
    struct epoll_event events[512], input = {.events = EPOLLIN};
    struct rlimit limit;
    int known = 0;
    if (argc < 6 || argc > 5 + PORTS)
        die("load DIALECT COUNT TARGET CURSOR PORT [PORT...]");
    while (strcmp(DIALECTS[dialect], argv[1]))
        if (++known == sizeof DIALECTS / sizeof *DIALECTS)
            die("what is %s?", argv[1]);
        else
            dialect = known;
    count = strtoul(argv[2], NULL, 10);
    target = argv[3];
    for (int each = 5; each < argc; each++)
        ports[port_count++] = atoi(argv[each]);
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    polls = calloc(count, sizeof *polls);
    next = calloc(count, sizeof *next);
    poller = epoll_create1(0);
    diagnosis = socket(AF_NETLINK, SOCK_RAW, NETLINK_SOCK_DIAG);
    if (!count || !polls || !next || poller < 0 || diagnosis < 0)
        die("cannot begin: %s", strerror(errno));
    for (unsigned each = 0; each < count; each++) {
        polls[each].step = dialect == SOCKETIO ? OPEN : POLL;
        polls[each].highest = -1;
        ready += polls[each].step == POLL;
        if (strcmp(argv[4], "-"))
            snprintf(polls[each].cursor, sizeof polls[each].cursor, "%s", argv[4]);
        bake(&polls[each], each);
    }
    if (epoll_ctl(poller, EPOLL_CTL_ADD, STDIN_FILENO, &input) < 0)
        die("cannot read commands: %s", strerror(errno));
    for (;;) {
        int pause_ms = command.what == HOLD ? 1 : -1;
        if (command.what == HOLD && opened < count && accepts()) {
            for (int each = 0; each < OPENED && opened < count; each++)
                open_one();
            pause_ms = 0;
        }
        if (next_count)
            pause_ms = 0;
        int found = epoll_wait(poller, events, 512, pause_ms);
        for (int each = 0; each < found; each++)
            if (events[each].data.ptr)
                read_answer(events[each].data.ptr);
            else
                read_commands();
        if (!found)
            ask_again();
        go_on();
    }
}
