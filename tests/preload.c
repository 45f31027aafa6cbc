/* What the fault tests preload into a server: storage that fails, a disk that keeps only what was synced, a clock that
 * can be set. It stands between SQLite (or Python) and libc. Each part sleeps until its variable is set:
 *
 *   PRELOAD_DATABASE   the database's path; it and its -wal are the files that the next two are about
 *   PRELOAD_FAULT      a file; while it exists, the call that it names fails with the error that it numbers: "fdatasync 5"
 *   PRELOAD_DISK       a folder; `db` and `wal` there hold what a power cut would leave of the two files. A write gets
 *                      there with the next sync of its file; `db.linked` and `wal.linked` are made by the first sync of
 *                      the folder that the files stand in: without it, a power cut leaves no file at all
 *   PRELOAD_CLOCK      a file; the seconds in it are added to the time of day
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))real(#name))

static void *real(const char *name) {
    void *found = dlsym(RTLD_NEXT, name);
    if (found == NULL) abort();
    return found;
}

enum { DB, WAL, NEITHER };
static const char *const names[] = {"db", "wal"};

/* A write, or a truncation (data is NULL), that no sync has followed yet. */
struct change {
    struct change *next;
    off_t at; /* of a truncation: the new length */
    size_t size;
    char *data;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards the changes and the disk */
static struct change *first[NEITHER], **last[NEITHER] = {&first[DB], &first[WAL]};

static int path_of(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX);
    path[length > 0 ? length : 0] = 0;
    return length > 0;
}

static int which(int fd) {
    const char *database = getenv("PRELOAD_DATABASE");
    char path[PATH_MAX + 1];
    if (database == NULL || !path_of(fd, path) || strncmp(path, database, strlen(database)) != 0) return NEITHER;
    const char *rest = path + strlen(database);
    return *rest == 0 ? DB : strcmp(rest, "-wal") == 0 ? WAL : NEITHER;
}

static int fails(const char *call) {
    const char *file = getenv("PRELOAD_FAULT");
    FILE *trigger = file ? fopen(file, "r") : NULL;
    if (trigger == NULL) return 0;
    char named[32] = "";
    int error = 0, found = fscanf(trigger, "%31s %d", named, &error) == 2 && strcmp(named, call) == 0;
    fclose(trigger);
    if (found) errno = error;
    return found;
}

static void remember(int file, const void *data, size_t size, off_t at) {
    if (getenv("PRELOAD_DISK") == NULL) return;
    struct change *change = calloc(1, sizeof *change);
    if (change == NULL) abort();
    change->at = at;
    if (data != NULL) {
        if ((change->data = malloc(size)) == NULL) abort();
        memcpy(change->data, data, size);
        change->size = size;
    }
    pthread_mutex_lock(&lock);
    *last[file] = change;
    last[file] = &change->next;
    pthread_mutex_unlock(&lock);
}

static void reach_the_disk(int file) {
    const char *disk = getenv("PRELOAD_DISK");
    if (disk == NULL) return;
    char path[PATH_MAX + 1];
    snprintf(path, sizeof path, "%s/%s", disk, names[file]);
    pthread_mutex_lock(&lock);
    int fd = REAL(open)(path, O_RDWR | O_CREAT, 0600);
    if (fd < 0) abort();
    for (struct change *change; (change = first[file]) != NULL; free(change)) {
        if (change->data == NULL) {
            if (REAL(ftruncate)(fd, change->at) != 0) abort();
        } else if (REAL(pwrite)(fd, change->data, change->size, change->at) != (ssize_t)change->size) {
            abort();
        }
        free(change->data);
        first[file] = change->next;
    }
    last[file] = &first[file];
    close(fd);
    pthread_mutex_unlock(&lock);
}

static void folder_reaches_the_disk(int fd) {
    const char *disk = getenv("PRELOAD_DISK"), *database = getenv("PRELOAD_DATABASE");
    char folder[PATH_MAX + 1], path[PATH_MAX + 16];
    if (disk == NULL || database == NULL || !path_of(fd, folder)) return;
    size_t length = strlen(folder);
    if (strncmp(database, folder, length) != 0 || strrchr(database, '/') != database + length) return;
    for (int file = DB; file < NEITHER; file++) {
        snprintf(path, sizeof path, "%s%s", database, file == DB ? "" : "-wal");
        if (access(path, F_OK) != 0) continue;
        snprintf(path, sizeof path, "%s/%s.linked", disk, names[file]);
        int made = REAL(open)(path, O_WRONLY | O_CREAT, 0600);
        if (made < 0) abort();
        close(made);
    }
}

static ssize_t written(int fd, const void *data, size_t size, off_t at) {
    int file = which(fd);
    if (file != NEITHER && fails("pwrite")) return -1;
    ssize_t count = REAL(pwrite)(fd, data, size, at);
    if (file != NEITHER && count > 0) remember(file, data, count, at);
    return count;
}

static int truncated(int fd, off_t length) {
    int file = which(fd), result = REAL(ftruncate)(fd, length);
    if (file != NEITHER && result == 0) remember(file, NULL, 0, length);
    return result;
}

static int synced(int fd, int (*sync)(int)) {
    int file = which(fd);
    if (file != NEITHER && fails("fdatasync")) return -1;
    int result = sync(fd);
    if (result != 0) return result;
    if (file != NEITHER) reach_the_disk(file);
    else folder_reaches_the_disk(fd);
    return result;
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t at) { return written(fd, data, size, at); }
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) { return written(fd, data, size, at); }
int ftruncate(int fd, off_t length) { return truncated(fd, length); }
int ftruncate64(int fd, off64_t length) { return truncated(fd, length); }
int fdatasync(int fd) { return synced(fd, REAL(fdatasync)); }
int fsync(int fd) { return synced(fd, REAL(fsync)); }

static time_t set_forward(void) {
    const char *file = getenv("PRELOAD_CLOCK");
    FILE *clock = file ? fopen(file, "r") : NULL;
    long seconds = 0;
    if (clock == NULL) return 0;
    if (fscanf(clock, "%ld", &seconds) != 1) seconds = 0;
    fclose(clock);
    return seconds;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = REAL(clock_gettime)(clock, now);
    if (result == 0 && clock == CLOCK_REALTIME) now->tv_sec += set_forward();
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    int result = REAL(gettimeofday)(now, zone);
    if (result == 0) now->tv_sec += set_forward();
    return result;
}

time_t time(time_t *now) {
    struct timespec shown;
    clock_gettime(CLOCK_REALTIME, &shown);
    if (now != NULL) *now = shown.tv_sec;
    return shown.tv_sec;
}
