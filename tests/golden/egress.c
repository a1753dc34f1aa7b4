/* Preloaded under a whole process tree by tests/test_house.py: whatever tries to reach another machine is refused and
 * written, one line each, to the file that EGRESS_LOG names. Sees native code and children, which a guard inside Python
 * does not. Loopback, Unix sockets and binding stay open.
 *   cc -shared -fPIC -O1 -o egress.so egress.c -ldl
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void note(const char *call, const char *where) {
    char line[400];
    const char *path = getenv("EGRESS_LOG");
    int file = path ? open(path, O_WRONLY | O_CREAT | O_APPEND, 0600) : -1;
    if (file < 0) return;
    int length = snprintf(line, sizeof line, "%s %s\n", call, where);
    if (length > 0 && write(file, line, (size_t)length) < 0) perror("egress");
    close(file);
}

static int leaves(const char *call, const struct sockaddr *to) {
    char text[INET6_ADDRSTRLEN] = "?";
    if (to == NULL) return 0;
    if (to->sa_family == AF_INET) {
        const struct in_addr *a = &((const struct sockaddr_in *)to)->sin_addr;
        unsigned int host = ntohl(a->s_addr);
        if (host >> 24 == 127 || host == 0) return 0;
        inet_ntop(AF_INET, a, text, sizeof text);
    } else if (to->sa_family == AF_INET6) {
        const struct in6_addr *a = &((const struct sockaddr_in6 *)to)->sin6_addr;
        if (IN6_IS_ADDR_LOOPBACK(a) || IN6_IS_ADDR_UNSPECIFIED(a)) return 0;
        if (IN6_IS_ADDR_V4MAPPED(a) && a->s6_addr[12] == 127) return 0;
        inet_ntop(AF_INET6, a, text, sizeof text);
    } else {
        return 0;
    }
    note(call, text);
    return 1;
}

static int is_here(const char *name) {
    char own[256] = "";
    struct in6_addr scratch;
    if (name == NULL || *name == '\0' || strcmp(name, "localhost") == 0) return 1;
    /* A number asks nobody; connect() judges it. */
    if (inet_pton(AF_INET, name, &scratch) == 1 || inet_pton(AF_INET6, name, &scratch) == 1) return 1;
    return gethostname(own, sizeof own - 1) == 0 && strcmp(name, own) == 0;
}

int connect(int fd, const struct sockaddr *to, socklen_t size) {
    static int (*real)(int, const struct sockaddr *, socklen_t);
    if (!real) real = dlsym(RTLD_NEXT, "connect");
    if (leaves("connect", to)) return errno = ENETUNREACH, -1;
    return real(fd, to, size);
}

ssize_t sendto(int fd, const void *data, size_t n, int flags, const struct sockaddr *to, socklen_t size) {
    static ssize_t (*real)(int, const void *, size_t, int, const struct sockaddr *, socklen_t);
    if (!real) real = dlsym(RTLD_NEXT, "sendto");
    if (leaves("sendto", to)) return errno = ENETUNREACH, -1;
    return real(fd, data, n, flags, to, size);
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags) {
    static ssize_t (*real)(int, const struct msghdr *, int);
    if (!real) real = dlsym(RTLD_NEXT, "sendmsg");
    if (leaves("sendmsg", message->msg_name)) return errno = ENETUNREACH, -1;
    return real(fd, message, flags);
}

int getaddrinfo(const char *name, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
    static int (*real)(const char *, const char *, const struct addrinfo *, struct addrinfo **);
    if (!real) real = dlsym(RTLD_NEXT, "getaddrinfo");
    if (!is_here(name)) return note("lookup", name), EAI_FAIL;
    return real(name, service, hints, found);
}

struct hostent *gethostbyname(const char *name) {
    static struct hostent *(*real)(const char *);
    if (!real) real = dlsym(RTLD_NEXT, "gethostbyname");
    if (!is_here(name)) return note("lookup", name), h_errno = HOST_NOT_FOUND, NULL;
    return real(name);
}
