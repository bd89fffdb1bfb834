//! scratch
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let s = oci::images::ImageStore::open(&a[1]).unwrap();
    match a[2].as_str() {
        "load" => {
            for f in &a[3..] {
                let t = std::time::Instant::now();
                for i in s.import_path(f.as_ref(), &()).unwrap_or_else(|e| {
                    eprintln!("error: {e}");
                    vec![]
                }) {
                    println!("{} {:?}", i.id, i.references);
                }
                println!("{f} {:?}", t.elapsed());
            }
        }
        "ls" => {
            for i in s.list().unwrap() {
                println!(
                    "{} {:?} {:?} {} {:?}",
                    &i.id[..20],
                    i.repo_tags,
                    i.repo_digests,
                    i.size,
                    i.config.cmd
                );
            }
        }
        "snap" => {
            let m = s.snapshot(&a[3], &a[4]).unwrap();
            let l: Vec<_> = m
                .lowerdirs
                .iter()
                .map(|p| p.display().to_string())
                .collect();
            println!(
                "lowerdir={},upperdir={},workdir={}",
                l.join(":"),
                m.upperdir.display(),
                m.workdir.display()
            );
        }
        "unsnap" => s.remove_snapshot(&a[3]).unwrap(),
        "rm" => println!("{:?}", s.remove(&a[3])),
        "gc" => println!("{:?} {:?}", s.collect(), s.fs_usage()),
        "pull" => {
            let rt = tokio::runtime::Runtime::new().unwrap();
            println!(
                "{:?}",
                rt.block_on(s.pull(
                    &a[3],
                    &oci::images::Auth::Anonymous,
                    &Default::default(),
                    std::sync::Arc::new(|e| println!("{e:?}"))
                ))
            );
        }
        _ => {}
    }
}
