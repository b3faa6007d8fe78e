/* A disk that fails: loaded before the C library, so that what Python's, Rust's and C++'s libraries
 * write is caught too. Counted are the calls that change what lies under the watched folders: opens
 * for writing, writes, fsyncs, renames, links and mkdirs. A write that fails has written half.
 *
 * Not seen: buffered C streams (fopen), whose writes stay within the C library, and memory maps;
 * nothing that a run publishes or goes on from is written that way.
 *
 * It also kills its process exactly before or after a rename: see obey().
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { FILES = 65536, FOLDERS = 8, PATH = 4096 };

static char folders[FOLDERS][PATH];
static int folder_count;
static _Atomic char watched[FILES];
static atomic_long asked;
static atomic_long fails_at;
static atomic_int number;
static atomic_int stays;

#define REAL(name) \
    static __typeof__(name) *real; \
    if (real == NULL) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

void disk_watch(const char *folder) {
    if (folder_count < FOLDERS) strncpy(folders[folder_count++], folder, PATH - 1);
}

/* From now on the at-th call fails with this error number, and all after it if it stays. 0: none. */
void disk_fail(long at, int error, int and_after) {
    atomic_store(&asked, 0);
    atomic_store(&number, error);
    atomic_store(&stays, and_after);
    atomic_store(&fails_at, at);
}

long disk_asked(void) { return atomic_load(&asked); }

static int is_watched(const char *path) {
    if (path == NULL) return 0;
    for (int i = 0; i < folder_count; i++) {
        size_t length = strlen(folders[i]);
        if (strncmp(path, folders[i], length) == 0 && (path[length] == '/' || path[length] == 0))
            return 1;
    }
    return 0;
}

static int fails(void) {
    long at = atomic_load(&fails_at);
    long n = atomic_fetch_add(&asked, 1) + 1;
    if (at == 0 || n < at || (n > at && !atomic_load(&stays))) return 0;
    errno = atomic_load(&number);
    return 1;
}

static int file_is_watched(int file) { return file >= 0 && file < FILES && watched[file]; }

static int remember(int file, int is) {
    if (file >= 0 && file < FILES) watched[file] = (char)is;
    return file;
}

static int changes(int flags) { return (flags & O_ACCMODE) != O_RDONLY || (flags & O_CREAT); }

#define OPEN(name, place, place_used)                                     \
    int name(place const char *path, int flags, ...) {                    \
        REAL(name);                                                       \
        va_list rest;                                                     \
        va_start(rest, flags);                                            \
        mode_t mode = (flags & (O_CREAT | __O_TMPFILE)) ? va_arg(rest, mode_t) : 0; \
        va_end(rest);                                                     \
        int is = is_watched(path);                                        \
        if (is && changes(flags) && fails()) return -1;                   \
        return remember(real(place_used path, flags, mode), is);          \
    }
#define COMMA ,
OPEN(open, , )
OPEN(open64, , )
OPEN(openat, int folder COMMA, folder COMMA)
OPEN(openat64, int folder COMMA, folder COMMA)

int close(int file) {
    REAL(close);
    remember(file, 0);
    return real(file);
}

ssize_t write(int file, const void *data, size_t size) {
    REAL(write);
    if (!file_is_watched(file) || !fails()) return real(file, data, size);
    int error = errno;
    if (size > 1) (void)!real(file, data, size / 2);
    errno = error;
    return -1;
}

ssize_t writev(int file, const struct iovec *parts, int count) {
    REAL(writev);
    return file_is_watched(file) && fails() ? -1 : real(file, parts, count);
}

#define POSITIONED(name, offset_type)                                             \
    ssize_t name(int file, const void *data, size_t size, offset_type offset) {   \
        REAL(name);                                                               \
        return file_is_watched(file) && fails() ? -1 : real(file, data, size, offset); \
    }
POSITIONED(pwrite, off_t)
POSITIONED(pwrite64, off64_t)

#define SEND(name, offset_type)                                              \
    ssize_t name(int to, int from, offset_type *offset, size_t size) {       \
        REAL(name);                                                          \
        return file_is_watched(to) && fails() ? -1 : real(to, from, offset, size); \
    }
SEND(sendfile, off_t)
SEND(sendfile64, off64_t)

ssize_t copy_file_range(int from, off64_t *at, int to, off64_t *to_at, size_t size, unsigned flags) {
    REAL(copy_file_range);
    return file_is_watched(to) && fails() ? -1 : real(from, at, to, to_at, size, flags);
}

#define SYNC(name)                                                \
    int name(int file) {                                          \
        REAL(name);                                               \
        return file_is_watched(file) && fails() ? -1 : real(file); \
    }
SYNC(fsync)
SYNC(fdatasync)

/* The file that DISK_KILLS names holds an order such as "after 3 models/run-": the third rename of
 * one process to a path with these words in it is that process's last act, or its next one would
 * have been where the order says "before". Who obeys leaves the path in place of the order, in a
 * file of that name with ".obeyed" behind it: an order is for one process alone.
 */
static void obey(const char *moment, const char *to) {
    static atomic_long seen;
    const char *name = getenv("DISK_KILLS");
    FILE *order = name == NULL ? NULL : fopen(name, "r");
    if (order == NULL) return;
    char when[16], words[PATH], obeyed[PATH];
    long which;
    int read = fscanf(order, "%15s %ld %4095s", when, &which, words);
    fclose(order);
    if (read != 3 || strcmp(when, moment) != 0 || strstr(to, words) == NULL) return;
    if (atomic_fetch_add(&seen, 1) + 1 != which) return;
    snprintf(obeyed, sizeof obeyed, "%s.obeyed", name);
    FILE *report = fopen(obeyed, "w");
    if (report != NULL) {
        fputs(to, report);
        fclose(report);
    }
    unlink(name);
    kill(getpid(), SIGKILL);
}

int rename(const char *from, const char *to) {
    REAL(rename);
    if (is_watched(to) && fails()) return -1;
    obey("before", to);
    int result = real(from, to);
    if (result == 0) obey("after", to);
    return result;
}

int renameat(int from_folder, const char *from, int to_folder, const char *to) {
    REAL(renameat);
    return is_watched(to) && fails() ? -1 : real(from_folder, from, to_folder, to);
}

int renameat2(int from_folder, const char *from, int to_folder, const char *to, unsigned flags) {
    REAL(renameat2);
    return is_watched(to) && fails() ? -1 : real(from_folder, from, to_folder, to, flags);
}

int link(const char *from, const char *to) {
    REAL(link);
    return is_watched(to) && fails() ? -1 : real(from, to);
}

int linkat(int from_folder, const char *from, int to_folder, const char *to, int flags) {
    REAL(linkat);
    return is_watched(to) && fails() ? -1 : real(from_folder, from, to_folder, to, flags);
}

int mkdir(const char *path, mode_t mode) {
    REAL(mkdir);
    return is_watched(path) && fails() ? -1 : real(path, mode);
}

int mkdirat(int folder, const char *path, mode_t mode) {
    REAL(mkdirat);
    return is_watched(path) && fails() ? -1 : real(folder, path, mode);
}
