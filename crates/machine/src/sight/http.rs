//! As much HTTP as a scrape needs: the head of a request in, one answer out, the connection closed.
//!
//! What comes in is anybody's bytes: nothing is trusted, and more than [`MAX_HEAD`] of it is not looked at. A body is
//! never read.

use std::net::IpAddr;

/// Most bytes of a request's head; Prometheus sends 300.
const MAX_HEAD: usize = 8 * 1024;

/// The format, as Prometheus names it.
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What to answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Answer {
    /// The metrics; without them if only the head was asked for.
    Metrics {
        /// GET, not HEAD.
        body: bool,
    },
    /// Where the metrics are.
    Index,
    /// An error.
    Error(u16, &'static str),
}

/// What is known of a request so far.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Progress {
    /// There must be more of it.
    More,
    /// It can be answered.
    Answer(Answer),
}

/// Looks at what has come of a request. With `local_only`, only a request to this computer by its own name or an
/// address is served: a web page that has its name resolve to 127.0.0.1 is not.
pub(super) fn parse(bytes: &[u8], local_only: bool) -> Progress {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
    let Some(end) = end.filter(|end| *end <= MAX_HEAD) else {
        let too_long = bytes.len() > MAX_HEAD;
        return if too_long {
            Progress::Answer(Answer::Error(431, "Request Header Fields Too Large"))
        } else {
            Progress::More
        };
    };
    Progress::Answer(judge(&bytes[..end], local_only).unwrap_or(Answer::Error(400, "Bad Request")))
}

/// Judges a head; `None` if it is none.
fn judge(head: &[u8], local_only: bool) -> Option<Answer> {
    let head = std::str::from_utf8(head).ok()?;
    let mut lines = head.split("\r\n");
    let mut words = lines.next()?.split(' ');
    let (method, target, version) = (words.next()?, words.next()?, words.next()?);
    if words.next().is_some() || !matches!(version, "HTTP/1.0" | "HTTP/1.1") || !target.starts_with('/') {
        return None;
    }
    let mut host = None;
    for line in lines {
        let (name, value) = line.split_once(':')?;
        if name.is_empty() || name.contains(char::is_whitespace) {
            return None;
        }
        if name.eq_ignore_ascii_case("host") && host.replace(value.trim()).is_some() {
            return None;
        }
    }
    if host.is_none() && version == "HTTP/1.1" {
        return None;
    }
    if local_only && host.is_some_and(|host| !is_local(host)) {
        return Some(Answer::Error(421, "Misdirected Request"));
    }
    let path = target.split('?').next()?;
    Some(match (method, path) {
        ("GET", "/metrics") => Answer::Metrics { body: true },
        ("HEAD", "/metrics") => Answer::Metrics { body: false },
        ("GET", "/") => Answer::Index,
        (_, "/metrics" | "/") => Answer::Error(405, "Method Not Allowed"),
        _ => Answer::Error(404, "Not Found"),
    })
}

/// Whether a Host says this computer, or an address.
fn is_local(host: &str) -> bool {
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.split(':').next().unwrap_or_default(),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}

/// The whole response. `write` is called only if the metrics are asked for.
pub(super) fn respond(answer: Answer, write: &dyn Fn() -> String) -> Vec<u8> {
    let (status, reason, kind, body, shown) = match answer {
        Answer::Metrics { body } => (200, "OK", METRICS, write(), body),
        Answer::Index => {
            let page = "<a href=\"/metrics\">usgx metrics</a>\n".to_owned();
            (200, "OK", "text/html; charset=utf-8", page, true)
        }
        Answer::Error(status, reason) => {
            (status, reason, "text/plain; charset=utf-8", format!("{reason}\n"), true)
        }
    };
    let allow = if status == 405 { "Allow: GET, HEAD\r\n" } else { "" };
    let length = body.len();
    let mut response = format!(
        "HTTP/1.1 {status} {reason}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n{allow}\
         X-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n"
    );
    if shown {
        response.push_str(&body);
    }
    response.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(request: &str) -> Progress {
        parse(request.replace('\n', "\r\n").as_bytes(), true)
    }

    #[test]
    fn scrapes_are_served() {
        let metrics = Progress::Answer(Answer::Metrics { body: true });
        for host in ["localhost:9100", "127.0.0.1", "[::1]:9100", "LOCALHOST", "10.0.0.7:80"] {
            assert_eq!(
                answer(&format!("GET /metrics HTTP/1.1\nAccept: */*\nhOsT: {host}\n\n")),
                metrics,
                "{host}"
            );
        }
        assert_eq!(answer("GET /metrics?x=1 HTTP/1.0\n\n"), metrics);
        let head = answer("HEAD /metrics HTTP/1.0\n\n");
        assert_eq!(head, Progress::Answer(Answer::Metrics { body: false }));
    }

    #[test]
    fn other_requests_are_told_why_not() {
        let status = |request: &str| match answer(request) {
            Progress::Answer(Answer::Error(status, _)) => status,
            other => panic!("{request:?}: {other:?}"),
        };
        assert_eq!(status("GET /secret HTTP/1.0\n\n"), 404);
        assert_eq!(status("POST /metrics HTTP/1.0\n\n"), 405);
        assert_eq!(status("GET /metrics HTTP/1.1\nHost: evil.example\n\n"), 421);
        for wrong in [
            "\n\n",
            "GET\n\n",
            "GET /metrics\n\n",
            "GET /metrics HTTP/2\n\n",
            "GET  /metrics HTTP/1.1\n\n",
            "GET /metrics HTTP/1.1\n\n",
            "GET metrics HTTP/1.0\n\n",
            "GET /metrics HTTP/1.0\nno colon\n\n",
            "GET /metrics HTTP/1.1\nHost: localhost\nHost: localhost\n\n",
            "GET /metrics HTTP/1.1\nHost : localhost\n\n",
        ] {
            assert_eq!(status(wrong), 400, "{wrong:?}");
        }
        assert_eq!(
            parse(b"GET /\xff HTTP/1.0\r\n\r\n", false),
            Progress::Answer(Answer::Error(400, "Bad Request"))
        );
    }

    #[test]
    fn no_bytes_are_waited_for_without_end() {
        assert_eq!(answer("GET /metrics HTTP/1.1\nHost: x"), Progress::More);
        let endless = vec![b'a'; MAX_HEAD + 1];
        assert!(matches!(parse(&endless, true), Progress::Answer(Answer::Error(431, _))));
        assert_eq!(parse(&endless[..MAX_HEAD], true), Progress::More);
    }

    #[test]
    fn any_bytes_are_survived() {
        const ALPHABET: &[u8] = b"GET /metrics HTTP/1.1\r\n\r\n: \xff\0";
        let mut state = 1_u64;
        for length in 0..2000 {
            let bytes: Vec<u8> = (0..length % 97)
                .map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    ALPHABET[(state >> 33) as usize % ALPHABET.len()]
                })
                .collect();
            if let Progress::Answer(answer) = parse(&bytes, length % 2 == 0) {
                assert!(respond(answer, &|| String::new()).starts_with(b"HTTP/1.1 "));
            }
        }
    }

    #[test]
    fn a_head_has_no_body() {
        let response = respond(Answer::Metrics { body: false }, &|| "x".repeat(10));
        let text = String::from_utf8(response).expect("text");
        assert!(text.contains("Content-Length: 10\r\n") && text.ends_with("\r\n\r\n"), "{text}");
    }
}
