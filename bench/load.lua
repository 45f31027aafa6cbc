-- wrk's script: posts orders, each with an Idempotency-Key of its own, or repeats one GET.
--
-- wrk -t1 -c CLIENTS -d LIMIT -s load.lua URL -- SECONDS CLIENTS RUN METHOD LINES
--
-- LINES are more header lines, each with its line end.
--
-- wrk itself drops what is on its way when its time is up, so answers and stored orders could not be compared. This
-- script stops asking after SECONDS, lets every client get its last answer, and says "drained"; the caller then ends
-- wrk with SIGINT. The rate is answers over the time from the first request to the last answer.

local ffi = require("ffi")
ffi.cdef [[
    typedef struct { long sec; long nsec; } bench_time;
    int clock_gettime(int clock, bench_time *time);
]]
local time = ffi.new("bench_time")

local function now()
    ffi.C.clock_gettime(1, time) -- CLOCK_MONOTONIC, the clock of the other generators, too
    return tonumber(time.sec) + tonumber(time.nsec) / 1e9
end

local threads = {}

function setup(thread)
    table.insert(threads, thread)
end

function init(args)
    seconds, clients, sent, idle, first, last = tonumber(args[1]), tonumber(args[2]), -1, 0, 0, 0
    local method, lines = args[4], args[5]
    if method ~= "POST" then
        fixed = method .. " " .. wrk.path .. " HTTP/1.1\r\nHost: " .. wrk.headers["Host"] .. "\r\n" .. lines .. "\r\n"
    else
        local start = "POST " .. wrk.path .. " HTTP/1.1\r\nHost: " .. wrk.headers["Host"]
            .. "\r\n" .. lines .. "Content-Type: application/json\r\nContent-Length: "
        local items = '"items": [{"name": "Burger", "quantity": 3}, {"name": "Ice Cream", "quantity": 1}]}'
        tables = {}
        for number = 1, 40 do
            local body = '{"table": "Table ' .. number .. '", ' .. items
            tables[number] = start .. #body .. "\r\nIdempotency-Key: " .. args[3] .. "-"
            tables[-number] = "\r\n\r\n" .. body
        end
    end
end

function request()
    if sent < 0 then -- wrk's own look at what the script makes; it sends nothing
        sent = 0
        return fixed or tables[1] .. 0 .. tables[-1]
    end
    local moment = now()
    if first == 0 then
        first = moment
    end
    if moment - first >= seconds then
        idle, last = idle + 1, moment
        if idle == clients then
            print("drained")
            io.flush()
        end
        return "" -- nothing more on this connection
    end
    sent = sent + 1
    if fixed then
        return fixed
    end
    local number = sent % 40 + 1
    return tables[number] .. sent .. tables[-number]
end

function done(summary, latency, requests)
    local sent, first, last = 0, 0, 0
    for _, thread in ipairs(threads) do -- one thread
        sent, first, last = thread:get("sent"), thread:get("first"), thread:get("last")
    end
    local errors = summary.errors
    print(string.format(
        '{"sent": %d, "answers": %d, "first": %.6f, "last": %.6f, "p50": %.6f, "p99": %.6f, "refused": %d, "broken": %d}',
        sent, summary.requests, first, last, latency:percentile(50) / 1e6, latency:percentile(99) / 1e6,
        errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
